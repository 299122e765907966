"""What vmemu costs beside the kernel and the physical bound: `python -m bench`, see README.md in this directory."""
