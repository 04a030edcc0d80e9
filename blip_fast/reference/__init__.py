"""The published BLIP and its operations in plain torch: the ground truth, and the baseline of every benchmark."""
