"""What a freshly flashed board does beside its agent: keys, clock, disk, Wi-Fi, the claim, and telling why not.

`plan` and `settings` decide, `machine` reaches the board, `steps` and `show` do, `main` is the loop. Run as root by
`fedless-firstboot.service` of the image and the package; enrollment itself runs as the agent's user.
"""
