"""Small models for CIFAR-size images, and any timm or torchvision classifier by name."""
