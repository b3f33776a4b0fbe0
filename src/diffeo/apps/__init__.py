"""Applications: what people do with flows of images and of speech. Each stands by itself."""
