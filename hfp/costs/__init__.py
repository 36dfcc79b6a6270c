"""What a model, a message and a round cost: MACs, parameters, bytes, memory and seconds on a device."""
