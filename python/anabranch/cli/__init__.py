"""python -m anabranch info | demo"""
