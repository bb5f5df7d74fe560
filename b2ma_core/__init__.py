"""Black-box model adaptation for semantic segmentation: SpatialMix and hard patches mining."""
