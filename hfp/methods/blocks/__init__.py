"""Parts that several federated methods are made of."""
