"""Teaching: the verbs that change a support folder or a bank file, and what is told to those that match with it."""
