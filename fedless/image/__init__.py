"""Images and packages for boards: a bootable image for Raspberry Pi, cloud-init for the stock system, a Debian package.

`boot` and `cloudinit` are texts; `runtime` is what every road installs (our code and pinned wheels); `base` is Debian,
`rootfs` and `disk` make file systems and partitions without mounting anything, `build` puts an image together, `deb` a
package. Called by `fedless image`. `files/` has what is copied: `device` for every board, `board` for the image.
"""
