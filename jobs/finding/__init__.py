"""The windows of tagged videos: their embeddings, and the nearest of them."""
