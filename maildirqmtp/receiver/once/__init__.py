"""`--once TIME`: what a broken connection left in doubt is delivered once.

`memory` keeps on disk what was accepted, `claims` knows what is under way in
this process, `destination` wraps both around another destination.
"""
