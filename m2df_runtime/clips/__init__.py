"""What a clip is: files, folders and pictures as frames with times; which a folder holds, which frames are taken."""
