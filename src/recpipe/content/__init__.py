"""Item content as vectors: texts and images through pretrained encoders, kept by what they were made from."""
