"""A trace on disk while it grows, and how it is finished."""
