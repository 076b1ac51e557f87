"""Dead channels taken out of a trained net, so that it is smaller for everyone.

:mod:`regrow.channel_removal.removal` is the public function, the others find which channels belong together. May import
:mod:`regrow.layers` alone.
"""
