"""What every part needs: errors, paths, files, images, processes."""
