"""The interface of a federated method: what it implements, and the values that it takes and gives."""
