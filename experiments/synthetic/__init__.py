"""Does the partition matter? The authors' synthetic study of pictures with two things in them."""
