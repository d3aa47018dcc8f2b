"""
The vendors' APIs: what can be answered from the cache, in which items, how answers are split and joined.

There is no network here. Each vendor has a folder.
"""
