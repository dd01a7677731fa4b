"""Multi-scale context blocks: Linen modules that map a feature map (h, w, c), or a pyramid, to one map (h, w, c).

They are written to be added to a frozen encoder's output: ``x + block(x)``.  With ``zero_init`` (the default) the last
projection starts at zero, so the sum starts as the identity.  ``width`` is the number of channels inside a block and
governs how many parameters are trained.  Those that take a pyramid take a list of maps, of any sizes and channels, the
last of them the map that they change; given one map alone they make its coarser scales themselves.  The originals
normalise with batch statistics; these use layer normalisation over channels, so that one image gives what a batch
gives.
"""
