"""What every script needs: errors, files, devices, training, decoding, metrics.

Nothing here knows a task's name or a method's name.
"""
