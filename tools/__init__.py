"""Scripts that build the book. They are not part of the package qlab."""
