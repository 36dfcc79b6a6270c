"""What a model, a message and a round cost.

`macs` counts multiply-accumulates and parameters, `payload` the bytes of a message, `memory` the bytes that training
keeps, and `devices` turns these into seconds on a simulated device.
"""
