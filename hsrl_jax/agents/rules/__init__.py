"""Rules of a few lines: agents that see what others see, and learn nothing.

They stand beside trained agents in every table of worlds: a policy that is not
above the best of them was not worth its training. What a rule needs to know is
in its parameters: the categories of the items, which are metadata, and what an
item is worth on average, by the training logs or by training users of the
simulator (`knowledge`). No rule reads the law by which users tire or leave.
"""
