"""Looking at a run from its folder: stored steps computed again, what went wrong, and a page of curves and samples."""
