"""Behind `mas power`: what sources there are, reading one for a while, recording it, and calibrating it."""
