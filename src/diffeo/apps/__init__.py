"""Applications: what people do with flows of images. Each stands by itself."""
