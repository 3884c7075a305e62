"""Item content as embeddings: texts and images through pretrained encoders, cached by content."""
