"""Networks: small ones of our own, timm's and torchvision's."""

from hfp.models.classifier import classifier_of
from hfp.models.create import create_model, models

__all__ = ["classifier_of", "create_model", "models"]
