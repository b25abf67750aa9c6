"""Fine-tune cross-encoders and bi-encoders."""
