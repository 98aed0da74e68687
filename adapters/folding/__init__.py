"""From a reduced network to a deployment copy with projections merged into their neighbours."""
