"""Data sets that come with the project: a retailer's year, MovieLens, a planted marketplace."""
