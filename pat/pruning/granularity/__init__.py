"""What is pruned as one: a weight, a block of weights, a slot of an N:M group. One file each, found by the registry.

    validate(name, shape)                             ValueError for a matrix that cannot be cut into units
    validate_target(sparsity)                         ValueError for a sparsity that the units cannot reach
    reachable(sparsity)                               what of a sparsity on the way there is removed
    weights_per_unit, num_units(shape), oriented      oriented: it needs the weight stored as (out, in)
    pruned_units(shapes, sparsity, scope)             units that exactly this target removes, over all parameters
    select(segments, sparsity, scope, comm)           writes keep to that target. Collective
    select_threshold(segments, threshold, comm)       writes keep = score > threshold. Collective

Masks do not depend on the number of ranks or on where they cut the parameters.
"""
