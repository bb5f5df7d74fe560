"""What ``method: published`` sets where a file sets nothing: the published recipe, and its faults one by one. The
owner's training is not part of it."""

PUBLISHED = {
    "box_queries": 1,
    "target_optimizer": "adam",
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "random_scale": [1.0, 1.0],
    "predict_scale": 1.0,
    "average_weights": False,
    "target_jitter": 0.0,
    "stage1_class_weights": "none",
    "stage1_label_smoothing": 0.0,
    "stage2_mix": "spatial",
    "target_noise": 0.0,
    "share_alignment": 0.0,
    "teacher_box_share": 0.0,
    "hard_patch_draw": "patch",
    "paste_patches": False,
    "rare_by": "pixels",
    "stage2_views": False,
    "confidence_threshold": 0.968,
    "confidence": "logit",  # fault: compared with a threshold for probabilities
    "teacher_mode": "train",  # fault: statistics of the batch
    "ema_buffers": "skip",  # fault: statistics of the first teacher
    "student_batch_norm": "batch",  # fault: moved by mixes and patches
}
