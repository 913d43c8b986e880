"""From a recording to what happened when: windows over it, the matcher's answers, events."""
