"""The hand-made inner loops of the two networks, each as plain torch (`reference`), Triton and ONNX function.

Everything works on the frame layout (b, L, p, c): b segments, L frames, p = h*w pixels, c channels, c contiguous. It is
the channels-last form of the (b*L, c, h, w) that the spatial layers use, so no kernel moves an axis.
"""
