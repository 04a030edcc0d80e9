"""Trained models on pictures of one's own: captions, answers, matches, features, and a page to look at."""
