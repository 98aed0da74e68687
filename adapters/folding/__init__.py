"""A deployment copy of a reduced network, with projections merged into their neighbours."""
