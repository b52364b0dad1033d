"""python -m anabranch info | demo | bench"""
