"""Compact models: their modules (`compact`), tensors (`twin`) and plain attributes (`attributes`)."""
