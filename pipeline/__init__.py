"""From annotations and video objects to Arrow batches of decoded clips, in a known order, whatever is broken in them.

Each subpackage is its own public API: import from `pipeline.manifest`, `pipeline.decode`, ... . This file stays
empty, so that a decode child and a served model import neither Ray nor anything else that they do not use.
"""
