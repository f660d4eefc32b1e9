"""One module for each page; each has a function `write` that gives the page's text."""
