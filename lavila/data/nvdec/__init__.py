"""NVDEC, the video decoder of NVIDIA's GPUs: what a chip decodes, who uses it, and whether it is the fastest here.

    driver    asks the driver's libraries
    chip      one answer for each GPU and process, and what keeps a shard set from it
    sessions  shares a GPU's decoding engines among all loaders and processes
    fastest   nvdec or host: a short measurement, kept with the machine's name

Nothing here decodes, and DALI is not needed. A decoder takes bytes and frame numbers (`pictures.Payload`) and gives
pictures. `dali_pipelines` has one such decoder; another would stand beside it, behind the same `runners.Runner`.
"""
