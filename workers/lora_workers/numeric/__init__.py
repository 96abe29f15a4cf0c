"""The numbers of an adapter's weights, measured in the same pass that copies and hashes them.

The only place that imports torch. Nothing here is imported before a worker's child process needs it: a torch that has
run in the parent makes every forked child hang.

    tensor_stream   cuts the chunks of the file into pieces of tensors
    plan            what each tensor is: which half of which module, with which scale
    meter           measures pieces one by one on the CPU
    slab_meter      measures many tensors of one shape at once, on a GPU
    products        norms and singular values of B·A from r x r matrices
    meaning         findings and spectra from what was measured
    numeric_pass    the pass: all of it together
    devices         which device a worker uses
"""
