"""One script a tool: the code that the chapters on the toolbox show, and that was run."""
