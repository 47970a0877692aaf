"""The material of the story world: words, a small grammar, and plots."""
