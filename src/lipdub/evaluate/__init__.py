"""The scorecard of a dub, or of a model on a whole set of clips: ``scoring.score`` and ``whole_set.run_set``.

openings, pixels, sync       the figures, one function each
watch, meters, scoring       one pass over a dub beside its source, gathering all of them
clips, frozen, whole_set     cross-dubs of a set and the rows beside them
one_dub                      one finished dub
scorecard, drawings, page    statistics, targets, pictures, the HTML page
"""
