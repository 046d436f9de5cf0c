"""Studies: ways of training compared on the same samples and seeds. Mixed cuts, one class per device, completions."""
