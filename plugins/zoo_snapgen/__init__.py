"""Text to image: the SnapGen UNet and decoder as a diffusers pipeline, any diffusers pipeline, digits with captions."""
