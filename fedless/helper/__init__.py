"""The second party of helper mode: a small service that sums mask streams, and nothing else.

It is run by another party, or in another account, than the aggregator; neither imports the other. What it
decides is `fedless.protocol.secagg.helper`; here are its settings, its memory and its port.
"""
