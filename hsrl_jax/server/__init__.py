"""The example server: an exported policy over HTTP, and what it keeps."""
