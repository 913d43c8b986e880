"""Where a stream's frames come from: one small file for each kind, all with the face of `timed.TimedFrames`."""
