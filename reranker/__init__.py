"""Fine-tune cross-encoder rerankers on your own text and prove whether they are better."""
